//! Rows of the tables `steps` and `losses`: collected in memory, turned into frames and back.

use crate::error::{Place, Result};
use crate::flat_lists::FlatLists;
use crate::record::{Losses, StepRecord};
use crate::schema::Column;
use crate::table_file::{self, Lists, Provenance, list_column, optional, required, texts};
use polars::prelude::*;
use simfluence_core::Step;
use std::path::Path;

/// The columns of `steps` for `rows`, the first of which is step `first`.
pub(crate) fn step_columns(rows: &[StepRecord], first: u32) -> Vec<polars::prelude::Column> {
    let numbers: Vec<u32> = (first..).take(rows.len()).collect();
    let rates: Vec<Option<f32>> = rows.iter().map(|r| r.step.learning_rate).collect();
    let norms: Vec<Option<f32>> = rows.iter().map(|r| r.grad_norm).collect();
    vec![
        polars::prelude::Column::new(Column::Step.column_name(), numbers),
        polars::prelude::Column::new(Column::LearningRate.column_name(), rates),
        list_column::<UInt32Type>(
            Column::Batch,
            rows.iter().map(|r| Some(r.step.batch.as_slice())),
        ),
        list_column::<Float32Type>(
            Column::BatchWeight,
            rows.iter().map(|r| r.step.weights.as_deref()),
        ),
        list_column::<UInt16Type>(Column::BatchMicro, rows.iter().map(|r| r.micro.as_deref())),
        list_column::<Float32Type>(
            Column::BatchLoss,
            rows.iter().map(|r| r.batch_loss.as_deref()),
        ),
        polars::prelude::Column::new(Column::GradNorm.column_name(), norms),
    ]
}

/// Reads the columns of `steps`; each record has the number that stands in its row.
pub(crate) fn read_steps(frame: &DataFrame, place: &Place) -> Result<Vec<StepRecord>> {
    let numbers = required::<UInt32Type>(frame, Column::Step, place)?;
    let rates = optional::<Float32Type>(frame, Column::LearningRate, place)?;
    let norms = optional::<Float32Type>(frame, Column::GradNorm, place)?;
    let batches = Lists::<UInt32Type>::new(frame, Column::Batch, place)?;
    let weights = Lists::<Float32Type>::new(frame, Column::BatchWeight, place)?;
    let micros = Lists::<UInt16Type>::new(frame, Column::BatchMicro, place)?;
    let losses = Lists::<Float32Type>::new(frame, Column::BatchLoss, place)?;
    Ok((0..numbers.len())
        .map(|row| StepRecord {
            number: Some(numbers[row]),
            step: Step {
                batch: batches.row(row).unwrap_or_default().to_vec(),
                weights: weights.row(row).map(<[f32]>::to_vec),
                learning_rate: rates[row],
            },
            micro: micros.row(row).map(<[u16]>::to_vec),
            batch_loss: losses.row(row).map(<[f32]>::to_vec),
            grad_norm: norms[row],
            losses: None,
            metrics: Vec::new(),
        })
        .collect())
}

/// Rows of `losses`, collected.
#[derive(Debug, Default)]
pub(crate) struct LossRows {
    steps: Vec<u32>,
    metrics: Vec<String>,
    test_ids: Vec<Option<Vec<u32>>>,
    ends: Vec<usize>,
    values: Vec<f32>,
}

impl LossRows {
    pub fn push(&mut self, step: u32, metric: &str, losses: &Losses) {
        self.push_parts(step, metric, losses.test_ids(), losses.values());
    }

    pub fn push_parts(&mut self, step: u32, metric: &str, ids: Option<&[u32]>, values: &[f32]) {
        self.steps.push(step);
        self.metrics.push(metric.to_owned());
        self.test_ids.push(ids.map(<[u32]>::to_vec));
        self.values.extend_from_slice(values);
        self.ends.push(self.values.len());
    }

    pub fn len(&self) -> usize {
        self.steps.len()
    }

    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Forgets the rows, keeps the memory for the next ones.
    pub fn clear(&mut self) {
        self.steps.clear();
        self.metrics.clear();
        self.test_ids.clear();
        self.ends.clear();
        self.values.clear();
    }

    pub fn frame(&self, place: &Place) -> Result<DataFrame> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        let values = starts
            .zip(&self.ends)
            .map(|(start, &end)| Some(&self.values[start..end]));
        let columns = vec![
            polars::prelude::Column::new(Column::Step.column_name(), &self.steps),
            polars::prelude::Column::new(Column::Metric.column_name(), &self.metrics),
            list_column::<UInt32Type>(Column::TestIds, self.test_ids.iter().map(Option::as_deref)),
            list_column::<Float32Type>(Column::Values, values),
        ];
        table_file::frame(columns, place)
    }
}

/// A segment of `losses`, as read.
pub(crate) struct LossSegment {
    pub steps: Vec<u32>,
    pub metrics: Vec<String>,
    test_ids: Lists<UInt32Type>,
    values: FlatLists,
}

impl LossSegment {
    pub fn read(path: &Path, provenance: &Provenance, place: &Place) -> Result<Self> {
        let (frame, values) = table_file::read_with_flat(path, provenance, Column::Values, place)?;
        let metrics = texts(&frame, Column::Metric.name(), place)?;
        let segment = Self {
            steps: required::<UInt32Type>(&frame, Column::Step, place)?,
            metrics: metrics.into_iter().flatten().map(str::to_owned).collect(),
            test_ids: Lists::new(&frame, Column::TestIds, place)?,
            values,
        };
        // Only damage can make the columns differ, and nothing below shall trip over it.
        let rows = segment.values.len();
        if segment.steps.len() != rows || segment.metrics.len() != rows || frame.height() != rows {
            let message = "its columns have different numbers of rows";
            return Err(table_file::unreadable(place, "Parquet", message));
        }
        Ok(segment)
    }

    pub fn test_ids(&self, row: usize) -> Option<&[u32]> {
        self.test_ids.row(row)
    }

    pub fn values(&self, row: usize) -> &[f32] {
        self.values.row(row)
    }
}
