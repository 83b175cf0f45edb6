//! Control, session transport, gateway, content and health: own types to messages.
