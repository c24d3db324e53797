"""What the networks of a GAN minimise, of logits.

    bce, non_saturating      Goodfellow et al. 2014, section 3
    cls_discriminator        matching-aware: Reed et al. 2016, Algorithm 1
    joint_discriminator      with logits of the image alone: the code of AttnGAN, Xu et al. 2018,
                             and of StackGAN's second stage in PyTorch, Zhang et al. 2017
    tree_discriminator       the same at unit weights: the code of StackGAN-v2, Zhang et al. 2018
    hinge_*                  Lim & Ye 2017; with wrong pairs, DF-GAN, Tao et al. 2022
    relativistic_*           Jolicoeur-Martineau 2019; as in R3GAN, Huang et al. 2024

Every argument is a tensor of logits of any shape, every result a scalar. `real` are logits of real
images with their captions, `wrong` of real images with other captions, `fake` of generated images
with the captions that they were made for; `..._alone` are logits of the images without text.
"""

from torch import Tensor
from torch.nn import functional as F


def bce(logits: Tensor, *, real: bool) -> Tensor:
    """-log D(x) for real, -log(1 - D(x)) for fake, D the sigmoid of the logits.

    On the sigmoid itself the gradient is gone at a logit of 20 in float32, and here never.
    """
    return F.softplus(-logits if real else logits).mean()


def non_saturating(fake: Tensor) -> Tensor:
    """The generator's -log D(G(z)), Goodfellow et al. 2014, section 3."""
    return bce(fake, real=True)


def cls_discriminator(
    real: Tensor,
    wrong: Tensor,
    fake: Tensor,
    *,
    wrong_weight: float,  # of wrong pairs among the fakes; 0: text decides nothing by itself
) -> Tensor:
    """GAN-CLS, Reed et al. 2016, Algorithm 1."""
    fakes = wrong_weight * bce(wrong, real=False) + (1 - wrong_weight) * bce(fake, real=False)
    return bce(real, real=True) + fakes


def joint_discriminator(
    real: Tensor, wrong: Tensor, fake: Tensor, real_alone: Tensor, fake_alone: Tensor
) -> Tensor:
    """The mean of two real terms and the mean of three fake ones."""
    reals = bce(real, real=True) + bce(real_alone, real=True)
    fakes = bce(fake, real=False) + bce(fake_alone, real=False) + bce(wrong, real=False)
    return reals / 2 + fakes / 3


def tree_discriminator(
    real: Tensor,
    wrong: Tensor,
    fake: Tensor,
    real_alone: Tensor,
    wrong_alone: Tensor,  # without its text, an image of a wrong pair is a real one
    fake_alone: Tensor,
) -> Tensor:
    """One scale's six terms at unit weights."""
    joint = bce(real, real=True) + bce(wrong, real=False) + bce(fake, real=False)
    alone = bce(real_alone, real=True) + bce(wrong_alone, real=True) + bce(fake_alone, real=False)
    return joint + alone


def hinge_discriminator(real: Tensor, wrong: Tensor, fake: Tensor) -> Tensor:
    """Tao et al. 2022: wrong pairs and fakes share the weight of the real ones."""
    fakes = F.relu(1 + fake).mean() + F.relu(1 + wrong).mean()
    return F.relu(1 - real).mean() + fakes / 2


def hinge_generator(fake: Tensor) -> Tensor:
    return -fake.mean()


def relativistic_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Row i of `real` and of `fake` have the same caption; the real one shall score higher."""
    return F.softplus(fake - real).mean()


def relativistic_generator(real: Tensor, fake: Tensor) -> Tensor:
    return F.softplus(real - fake).mean()
