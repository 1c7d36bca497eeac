"""Driver partitions, from their owner's side: the factory that makes them, and the connection to each."""
