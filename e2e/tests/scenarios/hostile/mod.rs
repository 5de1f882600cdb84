//! What hostile tenants and strangers on the network try.

mod policy_entries;
