"""ResNet-18 for small grey images."""

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

from locoprop_lightning.errors import check_counts
from locoprop_lightning.networks.images import check_images
from locoprop_lightning.reprs import Told


class ResNet18(Told, ResNet):
    """torchvision's ResNet-18 with another number of input channels; 28 x 28 pixels end as one.

    Takes images [n, channels, height, width] and returns logits [n, num_classes].

    Args:
        channels: Channels of the images.
        num_classes: Number of outputs.

    Example:
        >>> sum(p.numel() for p in ResNet18().parameters())
        11175370
    """

    def __init__(self, channels: int = 1, num_classes: int = 10) -> None:
        check_counts("ResNet18", 1, channels=channels, num_classes=num_classes)
        super().__init__(BasicBlock, [2, 2, 2, 2], num_classes=num_classes)
        self.conv1 = nn.Conv2d(channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, num_classes] of images [n, channels, height, width]."""
        check_images("ResNet18", x)
        logits: Tensor = super().forward(x)
        return logits
