//! Extended attributes as erofs and ext4 number their namespaces.

use volant_layers::{Xattrs, shown};

pub(super) const ACL_ACCESS: u8 = 2;
pub(super) const ACL_DEFAULT: u8 = 3;

/// Namespaces with their numbers; an access list is a namespace with no name in it.
const NAMESPACES: [(&[u8], u8); 5] = [
    (b"user.", 1),
    (b"system.posix_acl_access", ACL_ACCESS),
    (b"system.posix_acl_default", ACL_DEFAULT),
    (b"trusted.", 4),
    (b"security.", 6),
];

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attribute {
    pub namespace: u8,
    pub name: Vec<u8>,
    pub value: Vec<u8>,
}

/// The attributes that can be kept, in the order of ext4: by namespace, length of name, name. Others go to
/// `lost`.
pub(super) fn attributes(path: &[u8], xattrs: &Xattrs, lost: &mut Vec<String>) -> Vec<Attribute> {
    let mut kept = Vec::with_capacity(xattrs.len());
    for (name, value) in xattrs {
        let found = NAMESPACES.iter().find_map(|(prefix, namespace)| {
            let rest = name.strip_prefix(*prefix)?;
            let is_list = [ACL_ACCESS, ACL_DEFAULT].contains(namespace);
            let fits = rest.is_empty() == is_list && rest.len() < 256 && value.len() < 1 << 16;
            fits.then_some((*namespace, rest))
        });
        match found {
            Some((namespace, rest)) => kept.push(Attribute {
                namespace,
                name: rest.to_vec(),
                value: value.to_vec(),
            }),
            None => lost.push(format!(
                "/{}: the image cannot keep its attribute {}",
                shown(path),
                shown(name)
            )),
        }
    }
    kept.sort_by(|a, b| {
        (a.namespace, a.name.len(), &a.name).cmp(&(b.namespace, b.name.len(), &b.name))
    });
    kept
}
