//! The published numbers: Isonuma & Titov, *Unlearning Traces the Influential Training Data of
//! Language Models*.

/// A row of table 3: standardised influences of training datasets 1 to 4.
pub struct PaperRow {
    /// Name of our method.
    pub method: &'static str,
    /// Similar task and form, similar task, similar form, neither.
    pub influences: [f64; 4],
}

/// Table 3, leave-one-out.
pub const PAPER_TRUTH: [f64; 4] = [1.416, 0.462, -1.031, -0.847];

/// Table 3, the methods.
pub const PAPER_METHODS: [PaperRow; 6] = [
    row("graddot", [0.864, -0.107, 0.836, -1.594]),
    row("gradcos", [1.456, -0.508, 0.291, -1.240]),
    row("hif-lissa", [-1.294, 1.517, -0.111, -0.111]),
    row("tracin-cp", [-0.331, 1.690, -0.443, -0.916]),
    row("untrac", [1.330, 0.600, -0.913, -1.018]),
    row("untrac-inv", [1.688, -0.212, -0.651, -0.826]),
];

const fn row(method: &'static str, influences: [f64; 4]) -> PaperRow {
    PaperRow { method, influences }
}

/// Table 4 (eight pre-training datasets, ToxiGen): Pearson correlation with the truth, mean and
/// standard deviation over four trials, of UnTrac and of UnTrac-Inv.
pub struct PaperSweep {
    /// Which setting.
    pub setting: &'static str,
    /// UnTrac.
    pub untrac: (f64, f64),
    /// UnTrac-Inv.
    pub untrac_inv: (f64, f64),
}

/// Table 4, optimisers at 5e-5 and learning rates of Adam.
pub const PAPER_SWEEP: [PaperSweep; 10] = [
    sweep("sgd", (-0.147, 0.014), (-0.100, 0.069)),
    sweep("momentum", (-0.239, 0.011), (-0.099, 0.070)),
    sweep("rmsprop", (0.418, 0.063), (-0.231, 0.012)),
    sweep("adam", (0.419, 0.063), (0.376, 0.008)),
    sweep("adafactor", (0.345, 0.179), (0.313, 0.003)),
    sweep("5e-6", (-0.127, 0.302), (0.100, 0.084)),
    sweep("1e-5", (0.312, 0.311), (0.197, 0.067)),
    sweep("5e-5", (0.419, 0.063), (0.376, 0.008)),
    sweep("1e-4", (0.377, 0.040), (0.137, 0.019)),
    sweep("5e-4", (0.329, 0.015), (0.027, 0.015)),
];

const fn sweep(setting: &'static str, untrac: (f64, f64), untrac_inv: (f64, f64)) -> PaperSweep {
    PaperSweep {
        setting,
        untrac,
        untrac_inv,
    }
}

/// Table 2 (eight pre-training datasets): Pearson correlation with the truth for ToxiGen,
/// WinoBias and TruthfulQA, mean over four trials, with datasets of even and of uneven sizes.
pub struct PaperEight {
    /// Name of our method.
    pub method: &'static str,
    /// Even sizes.
    pub even: [f64; 3],
    /// Uneven sizes.
    pub uneven: [f64; 3],
}

/// Table 2.
pub const PAPER_EIGHT: [PaperEight; 7] = [
    eight("graddot", [-0.123, 0.418, 0.156], [-0.250, 0.446, -0.524]),
    eight("gradcos", [-0.050, 0.524, 0.447], [-0.337, 0.496, -0.401]),
    eight(
        "hif-arnoldi",
        [-0.068, 0.559, 0.250],
        [-0.343, 0.584, -0.362],
    ),
    eight(
        "hif-lissa",
        [-0.040, 0.389, -0.178],
        [0.071, -0.092, -0.098],
    ),
    eight("tracin-cp", [0.207, 0.082, 0.591], [-0.187, 0.183, 0.081]),
    eight("untrac", [0.419, 0.743, 0.314], [0.403, 0.518, 0.246]),
    eight("untrac-inv", [0.372, 0.813, 0.582], [0.393, 0.275, 0.360]),
];

const fn eight(method: &'static str, even: [f64; 3], uneven: [f64; 3]) -> PaperEight {
    PaperEight {
        method,
        even,
        uneven,
    }
}
