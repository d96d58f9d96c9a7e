"""The Lightning side: modules, data loading and callbacks. Nothing above this folder imports it."""
