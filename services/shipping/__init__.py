"""Shipping: books a carrier and hands the parcel over. Run: ``choreo run services.shipping:service``."""

from services.shipping.steps import service

__all__ = ["service"]
