use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Reads `null` as the default, which is what Go does for every field.
pub(crate) fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// A nil slice of Go.
pub fn null_if_empty<T: Serialize, S: Serializer>(items: &Vec<T>, serializer: S) -> Result<S::Ok, S::Error> {
    if items.is_empty() { serializer.serialize_none() } else { items.serialize(serializer) }
}
