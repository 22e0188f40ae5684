"""Inventory: reserves stock for an order, and releases it. Run: ``choreo run services.inventory:service``."""

from services.inventory.steps import service

__all__ = ["service"]
