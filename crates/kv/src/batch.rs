use crate::codec::{Key, Table, Value, seal};

/// One change of a [`Batch`], as an engine sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Op {
    pub table: &'static str,
    pub key: Vec<u8>,
    /// `None` deletes.
    pub value: Option<Vec<u8>>,
}

/// Changes that become visible and durable together. Later changes of a key win.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    pub(crate) ops: Vec<Op>,
}

impl Batch {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn put<K: Key + ?Sized, V: Value>(&mut self, table: &Table<K, V>, key: &K, value: &V) -> &mut Self {
        let key = key.encode().into_owned();
        let value = Some(seal(&key, value.encode()));
        self.ops.push(Op { table: table.name, key, value });
        self
    }

    pub fn delete<K: Key + ?Sized, V>(&mut self, table: &Table<K, V>, key: &K) -> &mut Self {
        self.ops.push(Op { table: table.name, key: key.encode().into_owned(), value: None });
        self
    }

    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    pub fn len(&self) -> usize {
        self.ops.len()
    }
}
