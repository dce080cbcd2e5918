"""The small convolutional network of DeepOBS."""

from torch import Tensor, nn

from locoprop_lightning.errors import check_counts
from locoprop_lightning.networks.images import check_images
from locoprop_lightning.reprs import Told


class ConvNet(Told, nn.Sequential):
    """DeepOBS's 2c2d (Schneider et al., 2019): two 5x5 convolutions with pools, 3136-1024-10, ReLU.

    Takes images [n, channels, 28, 28] and returns logits [n, num_classes]. Weights are drawn from a normal distribution
    with standard deviation 0.05 that is cut at two of them, biases are 0.05.

    Args:
        channels: Channels of the images.
        num_classes: Number of outputs.

    Example:
        >>> sum(p.numel() for p in ConvNet().parameters())
        3274634
    """

    def __init__(self, channels: int = 1, num_classes: int = 10) -> None:
        check_counts("ConvNet", 1, channels=channels, num_classes=num_classes)
        super().__init__(
            nn.Conv2d(channels, 32, 5, padding="same"),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 5, padding="same"),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(3136, 1024),
            nn.ReLU(),
            nn.Linear(1024, num_classes),
        )
        for name, parameter in self.named_parameters():
            if name.endswith("weight"):
                nn.init.trunc_normal_(parameter, std=0.05, a=-0.1, b=0.1)
            else:
                nn.init.constant_(parameter, 0.05)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, num_classes] of images [n, channels, 28, 28]."""
        check_images("ConvNet", x)
        return super().forward(x)
