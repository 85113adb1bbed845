//! Pictures of a comparison, as SVG text.
//!
//! | picture | function |
//! | --- | --- |
//! | real and simulated curves of the best, median and worst test example of a run | [`curves`] |
//! | real against simulated final losses | [`final_scatter`] |
//! | all-steps MSE by method | [`mse_bars`] |
//! | means over seeds with confidence intervals | [`bands`] |
//! | scores between all pairs, a pairwise matrix for instance | [`heat_map`] |
//! | the tail of scores on logarithmic axes | [`tail_plot`] |
//! | a what-if: mean loss per test dataset, original against edit | [`what_if`] |
//!
//! The colours are those of Okabe and Ito, which stay apart for colour-blind readers.

mod bands;
mod bars;
mod canvas;
mod curves;
mod heat_map;
mod scatter;
mod tail;
mod what_if;

pub use bands::{BandPanel, BandPoint, BandsPlot, bands};
pub use bars::mse_bars;
pub use canvas::PlotError;
pub use curves::{CurvesPlot, curves};
pub use heat_map::{HeatMapPlot, heat_map};
pub use scatter::{ScatterPlot, ScatterPoint, final_scatter, scatter_points};
pub use tail::{TailCurve, TailPlot, tail_curves, tail_plot};
pub use what_if::{WhatIfPlot, what_if};
