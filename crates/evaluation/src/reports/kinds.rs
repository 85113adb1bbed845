//! How the influence on a query depends on the kind of training sequence.

use super::error::ReportError;
use super::probes::{KIND, UNIT, column, same_examples};
use crate::bootstrap::{BootstrapSettings, Ratio, bootstrap_interval, paired_interval};
use crate::compare::Estimate;
use crate::table::{add_row, new_table, set_header, show};
use serde::Serialize;
use simfluence_core::{Examples, Scores};

/// One kind of training sequence, over all queries.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KindInfluence {
    /// The kind, `flipped` for instance.
    pub kind: String,
    /// Number of queries with a training sequence of this kind in their own unit.
    pub queries: usize,
    /// Mean score of the query's own sequences of this kind, with the bootstrap interval over
    /// queries.
    pub own: Estimate,
    /// Mean score of sequences of this kind that belong to other units: what the form alone does.
    /// `None` if there is one unit only.
    pub others: Option<f64>,
    /// The mean score divided by that of the reference kind; `None` where that is not positive.
    pub relative: Option<f64>,
    /// Mean of own − own of the reference kind, with the paired bootstrap interval over queries;
    /// `None` for the reference kind itself.
    pub difference: Option<Estimate>,
}

/// The influence of every kind of training sequence on one kind of query.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct InfluenceByKind {
    /// The kind of query.
    pub query: String,
    /// The kind that the others are compared with.
    pub reference: String,
    /// Kinds in the order of the training examples.
    pub kinds: Vec<KindInfluence>,
}

impl InfluenceByKind {
    /// For people.
    pub fn text(&self) -> String {
        let mut table = new_table();
        set_header(
            &mut table,
            [
                "trained on".to_owned(),
                "queries".to_owned(),
                "own unit".to_owned(),
                "other units".to_owned(),
                format!("÷ {}", self.reference),
                format!("− {}", self.reference),
            ],
        );
        for kind in &self.kinds {
            let cells = [
                kind.queries.to_string(),
                show(Some(kind.own.value), kind.own.interval),
                show(kind.others, None),
                show(kind.relative, None),
                show(
                    kind.difference.map(|d| d.value),
                    kind.difference.and_then(|d| d.interval),
                ),
            ];
            add_row(&mut table, &kind.kind, cells);
        }
        format!(
            "Influence on test examples of kind {}\n{table}\n[low, high]: bootstrap interval over queries.\n",
            self.query
        )
    }
}

/// Mean scores on the test examples of kind `query`, by the training examples' kind, of the
/// query's own unit and of all others.
///
/// `reference` is the kind that stands for the full effect: `ordered` for `query`, `flipped` for
/// `query-flipped`.
///
/// # Errors
/// Other examples than those of the scores; examples without the columns `kind` and `unit`; a kind
/// that there is not; a unit without sequences of some kind; a score that is not finite.
///
/// # Reference
/// Grosse et al. 2023 (arXiv 2308.03296), section on word ordering.
pub fn influence_by_kind(
    scores: &Scores,
    train: &Examples,
    test: &Examples,
    query: &str,
    reference: &str,
    settings: &BootstrapSettings,
) -> Result<InfluenceByKind, ReportError> {
    same_examples("training", &scores.train_keys, train)?;
    same_examples("test", &scores.test_keys, test)?;
    let (kinds, kind_of) = train.groups(KIND);
    for example in train.as_slice().iter().chain(test.as_slice()) {
        column(example, KIND)?;
        column(example, UNIT)?;
    }
    let unknown = |kind: &str, examples: &Examples| ReportError::UnknownKind {
        kind: kind.to_owned(),
        kinds: examples.groups(KIND).0.join(", "),
    };
    let queries: Vec<usize> = (0..test.len())
        .filter(|&j| test.as_slice()[j].column(KIND) == Some(query))
        .collect();
    if queries.is_empty() {
        return Err(unknown(query, test));
    }
    let place = kinds.iter().position(|kind| kind == reference);
    let reference_place = place.ok_or_else(|| unknown(reference, train))?;
    let sums: Vec<Vec<Sums>> = (0..kinds.len())
        .map(|kind| {
            let members: Vec<usize> = (0..train.len()).filter(|&i| kind_of[i] == kind).collect();
            let sums = queries
                .iter()
                .map(|&j| Sums::of(scores, train, test, &members, j));
            sums.collect::<Result<_, _>>()
        })
        .collect::<Result<_, _>>()?;
    let reference_units: Vec<Ratio> = sums[reference_place].iter().map(Sums::own_mean).collect();
    let reference_mean = mean(&reference_units);
    let kinds = kinds.into_iter().zip(&sums).enumerate();
    Ok(InfluenceByKind {
        query: query.to_owned(),
        reference: reference.to_owned(),
        kinds: kinds
            .map(|(k, (kind, sums))| {
                let units: Vec<Ratio> = sums.iter().map(Sums::own_mean).collect();
                let own = mean(&units);
                KindInfluence {
                    kind,
                    queries: units.len(),
                    own: Estimate {
                        value: own,
                        interval: bootstrap_interval(&units, settings),
                    },
                    others: Sums::others_mean(sums),
                    relative: (reference_mean > 0.0).then(|| own / reference_mean),
                    difference: (k != reference_place).then(|| Estimate {
                        value: own - reference_mean,
                        interval: paired_interval(&units, &reference_units, settings),
                    }),
                }
            })
            .collect(),
    })
}

/// Sums of the scores of one kind of training sequence on one query.
struct Sums {
    own: (f64, f64),
    others: (f64, f64),
}

impl Sums {
    fn of(
        scores: &Scores,
        train: &Examples,
        test: &Examples,
        members: &[usize],
        j: usize,
    ) -> Result<Self, ReportError> {
        let columns = test.len();
        let query = &test.as_slice()[j];
        let unit = query.column(UNIT);
        let mut sums = Self {
            own: (0.0, 0.0),
            others: (0.0, 0.0),
        };
        for &i in members {
            let sequence = &train.as_slice()[i];
            let score = f64::from(scores.values[i * columns + j]);
            if !score.is_finite() {
                return Err(ReportError::NotFinite {
                    what: "the score",
                    place: format!("of {:?} for {:?}", sequence.key, query.key),
                    got: score,
                });
            }
            let sum = if sequence.column(UNIT) == unit {
                &mut sums.own
            } else {
                &mut sums.others
            };
            *sum = (sum.0 + score, sum.1 + 1.0);
        }
        if sums.own.1 == 0.0 {
            return Err(ReportError::TooFew {
                what: "training sequences of a kind in the unit of a query",
                got: 0,
                needed: 1,
            });
        }
        Ok(sums)
    }

    fn own_mean(&self) -> Ratio {
        Ratio {
            numerator: self.own.0 / self.own.1,
            denominator: 1.0,
        }
    }

    fn others_mean(all: &[Self]) -> Option<f64> {
        let (sum, count) = all.iter().fold((0.0, 0.0), |(sum, count), s| {
            (sum + s.others.0, count + s.others.1)
        });
        (count > 0.0).then(|| sum / count)
    }
}

fn mean(units: &[Ratio]) -> f64 {
    units.iter().map(|unit| unit.numerator).sum::<f64>() / units.len() as f64
}

#[cfg(test)]
mod tests {
    use super::super::probes::tests::{example, scores};
    use super::*;

    fn examples(units: &[&str], kinds: &[&str]) -> Examples {
        let all = units.iter().flat_map(|unit| {
            kinds.iter().map(move |kind| {
                example(&format!("{unit}-{kind}"), &[("unit", unit), ("kind", kind)])
            })
        });
        Examples::new(all.collect()).unwrap()
    }

    #[test]
    fn own_sequences_are_told_from_those_of_other_units() {
        let train = examples(&["u", "v"], &["ordered", "flipped"]);
        let test = examples(&["u", "v"], &["query"]);
        #[rustfmt::skip]
        let values = vec![
            8.0, 1.0,
            2.0, 0.5,
            3.0, 4.0,
            1.5, 1.0,
        ];
        let keys = train.keys();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let scores = scores(&keys, &test, values);
        let settings = BootstrapSettings::default();
        let report =
            influence_by_kind(&scores, &train, &test, "query", "ordered", &settings).unwrap();
        let [ordered, flipped] = &report.kinds[..] else {
            panic!("two kinds")
        };
        assert_eq!((ordered.own.value, ordered.others), (6.0, Some(2.0)));
        assert_eq!((ordered.relative, ordered.difference), (Some(1.0), None));
        assert_eq!((flipped.own.value, flipped.others), (1.5, Some(1.0)));
        assert_eq!(flipped.relative, Some(0.25));
        let difference = flipped.difference.unwrap();
        // Query by query: 2 − 8 and 1 − 4.
        assert_eq!(difference.value, -4.5);
        let interval = difference.interval.unwrap();
        assert_eq!((interval.low, interval.high), (-6.0, -3.0));
        assert!(report.text().contains("flipped"));
    }

    #[test]
    fn an_unknown_kind_is_named_with_those_there_are() {
        let train = examples(&["u", "v"], &["ordered", "flipped"]);
        let test = examples(&["u", "v"], &["query"]);
        let keys = train.keys();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let scores = scores(&keys, &test, vec![0.0; 8]);
        let settings = BootstrapSettings::default();
        let report = influence_by_kind(&scores, &train, &test, "query", "shuffled", &settings);
        let message = report.unwrap_err().to_string();
        assert!(message.contains("ordered, flipped"), "{message}");
    }
}
