"""What images cost: from a speed to images per hour and per dollar."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """What a speed means over hours.

    Attributes:
        images_per_hour: of one GPU, or of this machine's CPU.
        images_per_dollar: None without a price.
        dollars_per_1000_images: None without a price.
    """

    images_per_hour: float
    images_per_dollar: float | None = None
    dollars_per_1000_images: float | None = None


def cost_of(images_per_second: float, price_per_hour: float | None) -> Cost:
    """What images cost at a speed.

    Args:
        images_per_second: above 0.
        price_per_hour: dollars for an hour of the device, above 0; None: not known.
    """
    per_hour = 3600 * images_per_second
    if price_per_hour is None:
        return Cost(per_hour)
    return Cost(per_hour, per_hour / price_per_hour, 1000 * price_per_hour / per_hour)


def describe_cost(cost: Cost, device_type: str) -> str:
    """One line for a person.

    Args:
        cost: to be told.
        device_type: "cuda" or "cpu".
    """
    line = f"{cost.images_per_hour:,.0f} images per {'GPU' if device_type == 'cuda' else 'CPU'} hour"
    if cost.images_per_dollar is None:
        return line
    return f"{line}, {cost.images_per_dollar:,.0f} per dollar, ${cost.dollars_per_1000_images:,.2f} per 1,000"
