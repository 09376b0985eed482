"""Usage events from where a program already passes: a request, a call, a line of its log. No framework is needed."""
