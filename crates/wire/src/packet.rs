//! fsutil packets between their message and their typed form.
use fault::{Fault, Result};
use proto::fsutil::types as pb;
use session::{Packet, Stat};

pub fn into_packet(packet: pb::Packet) -> Result<Packet> {
    use pb::packet::PacketType as T;
    let kind = T::try_from(packet.r#type).map_err(|_| Fault::invalid(format!("packet of unknown type {}", packet.r#type)))?;
    Ok(match kind {
        T::PacketStat => packet.stat.map_or(Packet::StatEnd, |stat| Packet::Stat(into_stat(stat))),
        T::PacketReq => Packet::Request { id: packet.id },
        T::PacketData => Packet::Data { id: packet.id, data: packet.data },
        T::PacketFin => Packet::Fin,
        T::PacketErr => Packet::Error(String::from_utf8_lossy(&packet.data).into_owned()),
    })
}

pub fn from_packet(packet: Packet) -> pb::Packet {
    use pb::packet::PacketType as T;
    let blank = |kind: T| pb::Packet { r#type: kind as i32, ..Default::default() };
    match packet {
        Packet::Stat(stat) => pb::Packet { stat: Some(from_stat(stat)), ..blank(T::PacketStat) },
        Packet::StatEnd => blank(T::PacketStat),
        Packet::Request { id } => pb::Packet { id, ..blank(T::PacketReq) },
        Packet::Data { id, data } => pb::Packet { id, data, ..blank(T::PacketData) },
        Packet::Fin => blank(T::PacketFin),
        Packet::Error(text) => pb::Packet { data: text.into(), ..blank(T::PacketErr) },
    }
}

pub fn into_stat(stat: pb::Stat) -> Stat {
    Stat {
        path: stat.path,
        mode: stat.mode,
        uid: stat.uid,
        gid: stat.gid,
        size: stat.size,
        mod_time: stat.mod_time,
        linkname: stat.linkname,
        devmajor: stat.devmajor,
        devminor: stat.devminor,
        xattrs: stat.xattrs.into_iter().map(|(key, value)| (key, value.into())).collect(),
    }
}

pub fn from_stat(stat: Stat) -> pb::Stat {
    pb::Stat {
        path: stat.path,
        mode: stat.mode,
        uid: stat.uid,
        gid: stat.gid,
        size: stat.size,
        mod_time: stat.mod_time,
        linkname: stat.linkname,
        devmajor: stat.devmajor,
        devminor: stat.devminor,
        xattrs: stat.xattrs.into_iter().map(|(key, value)| (key, value.into())).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;

    #[test]
    fn every_packet_survives_the_wire() {
        let stat = Stat { path: "a/b".into(), mode: 0o644, size: 3, xattrs: [("user.k".to_owned(), "v".into())].into(), ..Stat::default() };
        let packets = [
            Packet::Stat(stat),
            Packet::StatEnd,
            Packet::Request { id: 7 },
            Packet::Data { id: 7, data: "abc".into() },
            Packet::Data { id: 7, data: Default::default() },
            Packet::Fin,
            Packet::Error("no".into()),
        ];
        for packet in packets {
            let bytes = from_packet(packet.clone()).encode_to_vec();
            assert_eq!(into_packet(pb::Packet::decode(bytes.as_slice()).unwrap()).unwrap(), packet);
        }
    }

    #[test]
    fn malformed_packets_are_refused() {
        assert!(into_packet(pb::Packet { r#type: 9, ..Default::default() }).is_err());
        let whole = from_packet(Packet::Stat(Stat { path: "name".into(), ..Stat::default() })).encode_to_vec();
        for cut in 1..whole.len() {
            let cut = pb::Packet::decode(&whole[..cut]);
            assert!(cut.is_err() || cut.is_ok_and(|p| p.stat.is_none_or(|s| s.path.is_empty())), "a truncated packet never yields a path");
        }
    }
}
