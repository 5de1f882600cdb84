//! Event sink: harvests finished Jobs, tells of them and prunes.
