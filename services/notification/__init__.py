"""Notification: mails the customer, and apologises. Run: ``choreo run services.notification:service``."""

from services.notification.steps import service

__all__ = ["service"]
