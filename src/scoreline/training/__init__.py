"""The Lightning side: the module, data loading, averages of the weights, callbacks and states to resume from."""
