"""Payment: charges cards and issues invoices, and takes both back. Run: ``choreo run services.payment:service``."""

from services.payment.steps import service

__all__ = ["service"]
