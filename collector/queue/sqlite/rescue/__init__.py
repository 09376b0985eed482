"""From whatever stands in the queue's directory to a sound file: `ready` at each start, `recover` by hand."""
