"""From a graph to a program: specialize, lower, fuse, choose tactics, lay out, pack weights, plan memory, link."""
