"""The methods that learn a task: a file a method, each one object of the same few functions."""
