"""Loading models and formatting chats."""
