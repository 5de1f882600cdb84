//! What tenants, strangers and silent nodes try, and why it does no harm.

mod silent_nodes;
