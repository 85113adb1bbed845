//! Settings of leave-out truth.

use super::LeaveOut;

/// Settings of leave-out truth.
///
/// ```
/// use simfluence_simulators::leave_out::LeaveOutParams;
/// assert!(LeaveOutParams::new().seeds(4).jobs(2).check().is_ok());
/// assert!(LeaveOutParams::new().seeds(0).check().is_err());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaveOutParams {
    /// How often everything is trained, each time in another order; default 4, at least 1. The
    /// correlation between seeds needs 2.
    pub seeds: u32,
    /// The first seed, default 0; the others count up from it.
    pub first_seed: u64,
    /// Trainings at a time, default 1, at least 1. The result does not depend on it.
    pub jobs: usize,
}

impl Default for LeaveOutParams {
    fn default() -> Self {
        Self::new()
    }
}

impl LeaveOutParams {
    /// The defaults.
    pub fn new() -> Self {
        Self {
            seeds: 4,
            first_seed: 0,
            jobs: 1,
        }
    }

    /// Sets the number of seeds.
    #[must_use]
    pub fn seeds(mut self, seeds: u32) -> Self {
        self.seeds = seeds;
        self
    }

    /// Sets the first seed.
    #[must_use]
    pub fn first_seed(mut self, first_seed: u64) -> Self {
        self.first_seed = first_seed;
        self
    }

    /// Sets the number of trainings at a time.
    #[must_use]
    pub fn jobs(mut self, jobs: usize) -> Self {
        self.jobs = jobs;
        self
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// A count of 0.
    pub fn check(self) -> Result<LeaveOut, ParamsError> {
        at_least_one("seeds", self.seeds as usize)?;
        at_least_one("jobs", self.jobs)?;
        Ok(LeaveOut { params: self })
    }
}

/// Which random subsets are trained on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SubsetParams {
    /// Number of subsets, default 16, at least 1.
    pub count: u32,
    /// Share `α` of the run's training examples that a subset keeps, default 0.5, in (0, 1).
    pub fraction: f64,
    /// Seed of the draw, default 0.
    pub seed: u64,
}

impl Default for SubsetParams {
    fn default() -> Self {
        Self {
            count: 16,
            fraction: 0.5,
            seed: 0,
        }
    }
}

impl SubsetParams {
    /// Checks the settings.
    ///
    /// # Errors
    /// A count of 0, a fraction that is not strictly between 0 and 1.
    pub fn check(self) -> Result<Self, ParamsError> {
        at_least_one("subsets", self.count as usize)?;
        if !(self.fraction > 0.0 && self.fraction < 1.0) {
            return Err(ParamsError::Fraction { got: self.fraction });
        }
        Ok(self)
    }
}

fn at_least_one(setting: &'static str, got: usize) -> Result<(), ParamsError> {
    if got == 0 {
        return Err(ParamsError::Zero { setting });
    }
    Ok(())
}

/// Which setting is out of range.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ParamsError {
    /// A count of 0.
    #[error("{setting} is 0; it must be at least 1")]
    Zero {
        /// Name of the setting.
        setting: &'static str,
    },
    /// A share that leaves nothing out or nothing over.
    #[error("the fraction of examples that a subset keeps is {got}; it must lie between 0 and 1")]
    Fraction {
        /// What was given.
        got: f64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_out_of_range_are_named() {
        let error = LeaveOutParams::new().jobs(0).check().unwrap_err();
        assert_eq!(error, ParamsError::Zero { setting: "jobs" });
        for fraction in [0.0, 1.0, f64::NAN] {
            let params = SubsetParams {
                fraction,
                ..SubsetParams::default()
            };
            assert!(matches!(params.check(), Err(ParamsError::Fraction { .. })));
        }
    }
}
