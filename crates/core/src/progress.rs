//! How long work tells how far it is.

/// Receives the progress of long work; the program draws it, tests ignore it.
pub trait Progress: Sync {
    /// A phase of `total` units begins; `what` names it and its unit ("fitting test examples").
    fn begin(&self, what: &str, total: u64);
    /// `units` more are done.
    fn advance(&self, units: u64);
    /// The phase is over.
    fn end(&self);
}

/// Tells nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn begin(&self, _what: &str, _total: u64) {}
    fn advance(&self, _units: u64) {}
    fn end(&self) {}
}
