//! What hostile tenants and strangers on the network try, and why it does no harm to others.

mod crowding;
