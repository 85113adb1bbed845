//! What the recorded steps say about each training example, and where they say nothing.

use crate::teacher_forced::Rows;
use crate::{FitError, Problem};
use serde::{Deserialize, Serialize};

/// An example in fewer measured steps than this counts as rarely seen.
pub const RARELY: u32 = 3;

/// Training examples about which the recorded runs say nothing or little.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Identifiability {
    /// Number of training examples.
    pub train_count: usize,
    /// Measured steps of the fit.
    pub steps: usize,
    /// Ids of the examples in no measured step; they have neutral parameters.
    pub never: Vec<u32>,
    /// Ids of the examples in one or two measured steps; their parameters are mostly the penalty.
    pub rarely: Vec<u32>,
}

impl Identifiability {
    /// Counts the steps with `L_{t-1}` and `L_t` measured in which each example stands.
    ///
    /// # Errors
    /// There is no such step.
    pub fn new(problem: &Problem, sequences: &[usize]) -> Result<Self, FitError> {
        let rows = Rows::new(problem, sequences)?;
        let seen = rows.exposures.steps_seen();
        let ids = |wanted: fn(u32) -> bool| {
            let of = seen.iter().enumerate().filter(|&(_, &count)| wanted(count));
            of.map(|(id, _)| id as u32).collect()
        };
        Ok(Self {
            train_count: seen.len(),
            steps: rows.len(),
            never: ids(|count| count == 0),
            rarely: ids(|count| count > 0 && count < RARELY),
        })
    }

    /// A sentence for the user, `None` where every example was seen often enough.
    pub fn sentence(&self) -> Option<String> {
        let never = format!(
            "{} of {} training examples stand in no measured step of the training runs, so \
             nothing is known about them: they are simulated as changing nothing",
            self.never.len(),
            self.train_count
        );
        let rarely = format!(
            "{} of {} stand in fewer than {RARELY} measured steps, so what is known about them is \
             mostly the penalty",
            self.rarely.len(),
            self.train_count
        );
        match (self.never.is_empty(), self.rarely.is_empty()) {
            (true, true) => None,
            (false, true) => Some(format!("{never}.")),
            (true, false) => Some(format!(
                "{} of {} training examples stand in fewer than {RARELY} measured steps, so what \
                 is known about them is mostly the penalty.",
                self.rarely.len(),
                self.train_count
            )),
            (false, false) => Some(format!("{never}; {rarely}.")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Exposures, Sequence};

    #[test]
    fn never_and_rarely_seen_examples_are_listed() {
        let mut exposures = Exposures::new(4);
        for batch in [
            vec![(0, 1.0)],
            vec![(0, 0.5), (1, 0.5)],
            vec![(0, 1.0)],
            vec![(2, 1.0)],
        ] {
            exposures.push(batch).unwrap();
        }
        // The last step was not measured, so example 2 counts as never seen.
        let run = Sequence {
            exposures,
            steps: vec![0, 1, 2, 3],
            losses: vec![1.0; 4],
            measured: None,
        };
        let problem = Problem::new(4, 1, vec![run]).unwrap();
        let found = Identifiability::new(&problem, &[0]).unwrap();
        assert_eq!(
            (found.never.clone(), found.rarely.clone()),
            (vec![2, 3], vec![1])
        );
        let sentence = found.sentence().unwrap();
        assert!(
            sentence.contains("2 of 4") && sentence.contains("1 of 4"),
            "{sentence}"
        );
    }
}
