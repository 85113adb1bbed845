//! Pictures of a comparison, as SVG text.
//!
//! | picture | function |
//! | --- | --- |
//! | real and simulated curves of the best, median and worst test example of a run | [`curves`] |
//! | real against simulated final losses | [`final_scatter`] |
//! | all-steps MSE by method | [`mse_bars`] |
//! | a what-if: mean loss per test dataset, original against edit | [`what_if`] |
//!
//! The colours are those of Okabe and Ito, which stay apart for colour-blind readers.

mod bars;
mod canvas;
mod curves;
mod scatter;
mod what_if;

pub use bars::mse_bars;
pub use canvas::PlotError;
pub use curves::{CurvesPlot, curves};
pub use scatter::{ScatterPlot, ScatterPoint, final_scatter, scatter_points};
pub use what_if::{WhatIfPlot, what_if};
