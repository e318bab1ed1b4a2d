"""What the synchronous and the asynchronous client share: everything but the waiting."""
