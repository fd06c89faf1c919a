"""Speed measurements that no test depends on; `make bench` runs them."""
