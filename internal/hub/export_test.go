package hub

// DeadAfter is after how long without a beat a node counts as dead.
const DeadAfter = deadAfter
