use super::proto::{Attribute, Node, attribute_kind};

/// What of a node is wrong or not supported, in words.
pub(super) type Check<T> = Result<T, String>;

/// What the attributes that are read by these names are, whatever the operator.
const KINDS: [(i32, &[&str]); 3] = [
    (attribute_kind::FLOAT, &["alpha", "beta", "epsilon", "momentum", "min", "max"]),
    (
        attribute_kind::INT,
        &[
            "allowzero",
            "axis",
            "block_size",
            "ceil_mode",
            "channels_last",
            "count_include_pad",
            "group",
            "keepdims",
            "output_dtype",
            "spatial",
            "to",
            "training_mode",
            "transA",
            "transB",
        ],
    ),
    (attribute_kind::INTS, &["dilations", "kernel_shape", "pads", "strides"]),
];

/// Attributes by name, with the defaults of ONNX.
impl Node {
    /// Checks that attributes are of their types: what is another would be read as zero.
    pub(super) fn check_attributes(&self) -> Check<()> {
        for Attribute { name, kind, .. } in &self.attribute {
            let expected = KINDS.iter().find(|(_, names)| names.contains(&&**name));
            // Old files do not say.
            if let Some(&(expected, _)) = expected
                && *kind != 0
                && *kind != expected
            {
                return Err(format!(
                    "{name} is an attribute of type {kind}, where type {expected} was expected"
                ));
            }
        }
        Ok(())
    }

    fn attribute(&self, name: &str) -> Option<&Attribute> {
        self.attribute.iter().find(|attribute| attribute.name == name)
    }

    /// An integer.
    pub(super) fn int(&self, name: &str, default: i64) -> i64 {
        self.attribute(name).map_or(default, |attribute| attribute.i)
    }

    /// A float.
    pub(super) fn float(&self, name: &str, default: f32) -> f32 {
        self.attribute(name).map_or(default, |attribute| attribute.f)
    }

    /// A list of integers, if it is there.
    pub(super) fn ints(&self, name: &str) -> Option<&[i64]> {
        self.attribute(name).map(|attribute| &*attribute.ints)
    }

    /// A text; empty if it is not there.
    pub(super) fn text(&self, name: &str) -> &str {
        self.attribute(name).map_or("", |a| std::str::from_utf8(&a.s).unwrap_or("?"))
    }

    /// The attribute, whatever it is.
    pub(super) fn raw(&self, name: &str) -> Option<&Attribute> {
        self.attribute(name)
    }

    /// `N` sizes, or `default` for each.
    pub(super) fn sizes<const N: usize>(&self, name: &str, default: usize) -> Check<[usize; N]> {
        let Some(values) = self.ints(name) else { return Ok([default; N]) };
        let sizes: Option<Vec<usize>> = values.iter().map(|&v| usize::try_from(v).ok()).collect();
        // Beyond this, sums of sizes could overflow; no network is near it.
        sizes
            .filter(|sizes| sizes.iter().all(|&size| size < 1 << 24))
            .and_then(|sizes| sizes.try_into().ok())
            .ok_or_else(|| format!("{name} = {values:?}, where {N} sizes were expected"))
    }

    /// The name of the input at `index`; `None` where it is left out.
    pub(super) fn input(&self, index: usize) -> Option<&str> {
        self.input.get(index).map(String::as_str).filter(|name| !name.is_empty())
    }

    /// What errors call it.
    pub(super) fn label(&self) -> String {
        let name = if self.name.is_empty() {
            self.output.first().map_or("", String::as_str)
        } else {
            &self.name
        };
        format!("node {name:?} ({})", self.op_type)
    }
}
