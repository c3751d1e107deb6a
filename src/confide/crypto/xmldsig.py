"""Enveloped XML signatures of reference manifests: bytes in, the signed tree out.

Specification: XML Signature 1.1 §4 and §6.6.4 in the one profile that NVIDIA's manifests use;
docs/protocols/nvidia.md "Manifest documents". The document is hostile. What comes out was rebuilt
from the tree whose digest was checked, so nothing unsigned can be read by mistake.

`verify_enveloped` uses the key of the first certificate in the document itself. **It does not
check who that is**: the caller verifies `SignedXml.certificates` up to a pinned root.
"""

from __future__ import annotations

import copy
import hashlib
import hmac
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn

from lxml import etree

from confide.crypto.ecdsa import Curve, SigningKey, verify
from confide.crypto.errors import BadSignature
from confide.crypto.x509 import Certificate, parse_certificate_der
from confide.errors import FormatError, Reason
from confide.wire.json import b64decode, b64encode
from confide.wire.rim import XmlElement

if TYPE_CHECKING:
    from confide.crypto.ocsp import CertificateParser

__all__ = ["BadDigest", "SignedXml", "parse_tree", "sign_enveloped", "verify_enveloped"]

# From: docs/protocols/nvidia.md "Manifest documents"; genuine manifests have 21 to 26 KiB.
_MAX_BYTES: Final = 256 * 1024
_MAX_ELEMENTS: Final = 1024
_DS: Final = "http://www.w3.org/2000/09/xmldsig#"
_XML_PREFIX: Final = "{http://www.w3.org/XML/1998/namespace}"
# From: RFC 9231 §2.3.6 and §2.1.3, Canonical XML 1.1, XML Signature 1.1 §6.6.4.
_C14N: Final = "http://www.w3.org/2006/12/xml-c14n11"
_ENVELOPED: Final = "http://www.w3.org/2000/09/xmldsig#enveloped-signature"
_ECDSA_SHA384: Final = "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384"
_SHA384: Final = "http://www.w3.org/2001/04/xmldsig-more#sha384"
# Four are right, and that is for the chain's step to say: a list that nothing signs is read, and a
# shorter or longer one is then no chain. A bound all the same.
_MAX_CERTIFICATES: Final = 8
_CLAUSE: Final = "docs/protocols/nvidia.md#manifest-documents"

# The one accepted shape of SignedInfo: element, attributes, children.
_SIGNED_INFO: Final = (
    ("CanonicalizationMethod", {"Algorithm": _C14N}, ()),
    ("SignatureMethod", {"Algorithm": _ECDSA_SHA384}, ()),
    ("Reference", {"URI": ""}, ("Transforms", "DigestMethod", "DigestValue")),
)


class BadDigest(BadSignature):
    """The document is not the one that was signed, although its signature verifies."""


@dataclass(frozen=True, slots=True)
class SignedXml:
    """
    The content of one document whose signature was verified with the key of `certificates[0]`.

    `root` is the signed tree without the signature. `certificates`, one or more, are signer first
    and **unauthenticated**.
    """

    root: XmlElement
    certificates: tuple[Certificate, ...]


def _refuse(what: str) -> NoReturn:
    raise FormatError(f"manifest: {what}", reason=Reason.RIM_MALFORMED, clause=_CLAUSE)


def _parse(xml: bytes) -> etree._Element:
    if len(xml) > _MAX_BYTES:
        _refuse(f"{len(xml)} bytes, at most {_MAX_BYTES}")
    # Before the parser sees it: an internal subset could define entities and default attributes.
    if b"<!DOCTYPE" in xml or b"<!ENTITY" in xml:
        _refuse("a document type declaration")
    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False, encoding="UTF-8"
    )
    try:
        root = etree.fromstring(xml, parser)
    except (etree.XMLSyntaxError, ValueError) as error:
        raise FormatError(
            "manifest: not well-formed XML", reason=Reason.RIM_MALFORMED, clause=_CLAUSE
        ) from error
    if root.getprevious() is not None or root.getnext() is not None:
        _refuse("a comment or a processing instruction beside the root element")
    _require_plain(root)
    return root


def _require_plain(root: etree._Element) -> None:
    for count, node in enumerate(root.iter()):
        if count >= _MAX_ELEMENTS:
            _refuse(f"more than {_MAX_ELEMENTS} elements")
        if not isinstance(node.tag, str):
            _refuse("a comment, a processing instruction or an entity")
        for name in node.attrib:
            if _local(name).startswith(_XML_PREFIX):
                _refuse("an attribute in the xml namespace")


def _local(name: str | bytes) -> str:
    return name if isinstance(name, str) else name.decode()


def parse_tree(xml: bytes) -> XmlElement:
    """
    Parse a document under the same limits, **without any signature**.

    For tests of payload readers. Raises `FormatError`.
    """
    return _freeze(_parse(xml))


def verify_enveloped(
    xml: bytes,
    *,
    parse: CertificateParser = parse_certificate_der,
    root_name: str | None = None,
) -> SignedXml:
    """
    Establish that the first certificate inside `xml` signed the rest of `xml`.

    `parse` reads the certificates: a caller with many manifests may pass one that remembers.
    `root_name` (Clark notation) is what the root element has to be called.

    Raises `FormatError` for any other shape, `BadDigest` when the signature is right and the
    content is not, `BadSignature` when the signature is wrong.
    """
    root = _parse(xml)
    if root_name is not None and root.tag != root_name:
        _refuse("the root is another element")
    signatures = list(root.iter(f"{{{_DS}}}Signature"))
    if len(signatures) != 1 or signatures[0].getparent() is not root:
        _refuse(f"{len(signatures)} signatures; one is expected, directly below the root")
    signature = signatures[0]
    signed_info, value, key_info = _children(
        signature, ("SignedInfo", "SignatureValue", "KeyInfo"), {}
    )
    stated = _read_signed_info(signed_info)
    certificates = _read_certificates(key_info, parse)
    key = certificates[0].public_key
    if key.curve is not Curve.P384:
        _refuse("the signer's key is not P-384")
    verify(key, _base64(value, "SignatureValue"), _c14n(signed_info))
    content = copy.deepcopy(root)
    _remove_signature(content)
    if not hmac.compare_digest(hashlib.sha384(_c14n(content)).digest(), stated):
        raise BadDigest("the content is not what was signed")
    return SignedXml(_freeze(content), certificates)


def _c14n(element: etree._Element) -> bytes:
    try:
        return etree.tostring(element, method="c14n", with_comments=False)
    except etree.C14NError as error:
        # From: Canonical XML 1.1 §1: a relative namespace URI has no canonical form.
        raise FormatError(
            "manifest: no canonical form", reason=Reason.RIM_MALFORMED, clause=_CLAUSE
        ) from error


def _children(
    element: etree._Element, names: tuple[str, ...], attributes: dict[str, str]
) -> list[etree._Element]:
    """Return the children of `element`, which must be exactly `names` with `attributes` on it."""
    found = list(element)
    if [node.tag for node in found] != [f"{{{_DS}}}{name}" for name in names]:
        _refuse("an element of the signature has unexpected children")
    if {_local(name): _local(text) for name, text in element.attrib.items()} != attributes:
        _refuse("an element of the signature has unexpected attributes")
    return found


def _read_signed_info(signed_info: etree._Element) -> bytes:
    parts = _children(signed_info, tuple(name for name, _, _ in _SIGNED_INFO), {})
    for part, (_, attributes, names) in zip(parts, _SIGNED_INFO, strict=True):
        _children(part, names, attributes)
    transforms, method, value = parts[2]
    first, second = _children(transforms, ("Transform", "Transform"), {})
    _children(first, (), {"Algorithm": _ENVELOPED})
    _children(second, (), {"Algorithm": _C14N})
    _children(method, (), {"Algorithm": _SHA384})
    digest = _base64(value, "DigestValue")
    if len(digest) != hashlib.sha384().digest_size:
        _refuse("the digest is not SHA-384")
    return digest


def _read_certificates(
    key_info: etree._Element, parse: CertificateParser
) -> tuple[Certificate, ...]:
    (data,) = _children(key_info, ("X509Data",), {})
    if not 1 <= len(data) <= _MAX_CERTIFICATES:
        _refuse(f"{len(data)} certificates")
    nodes = _children(data, ("X509Certificate",) * len(data), {})
    return tuple(
        parse(
            _base64(node, "X509Certificate"),
            what=f"manifest certificate {number}",
            reason=Reason.RIM_MALFORMED,
        )
        for number, node in enumerate(nodes)
    )


def _base64(node: etree._Element, what: str) -> bytes:
    text = "".join((node.text or "").split())
    if len(node):
        _refuse(f"{what} has children")
    return b64decode(text, what=f"manifest: {what}", reason=Reason.RIM_MALFORMED)


def _remove_signature(root: etree._Element) -> None:
    """Remove the signature but keep the text that follows it: it is part of what was signed."""
    node = next(root.iter(f"{{{_DS}}}Signature"))
    previous, tail = node.getprevious(), node.tail or ""
    if previous is None:
        root.text = (root.text or "") + tail
    else:
        previous.tail = (previous.tail or "") + tail
    node.tail = None
    root.remove(node)


def _freeze(node: etree._Element) -> XmlElement:
    return XmlElement(
        tag=_local(node.tag),
        attributes=tuple((_local(name), _local(text)) for name, text in node.attrib.items()),
        children=tuple(_freeze(child) for child in node),
    )


def sign_enveloped(xml: bytes, key: SigningKey, certificates: tuple[bytes, ...]) -> bytes:
    """
    Return `xml` with an enveloped signature by `key` before the end of its root element.

    For simulators: `certificates` (DER, signer first) are put in as they are. Deterministic.
    """
    head, closing, tail = xml.rpartition(b"</")
    if not closing:
        raise ValueError("the root element has to be closed by a tag of its own")

    def assemble(digest: bytes, signature: bytes) -> bytes:
        listed = "".join(
            f"<ds:X509Certificate>{b64encode(c)}</ds:X509Certificate>" for c in certificates
        )
        text = _TEMPLATE.format(
            digest=b64encode(digest), signature=b64encode(signature), certificates=listed
        )
        return head + text.encode() + closing + tail

    root = _parse(assemble(b"", b""))
    _remove_signature(root)
    digest = hashlib.sha384(_c14n(root)).digest()
    root = _parse(assemble(digest, b""))
    signature = key.sign(_c14n(next(root.iter(f"{{{_DS}}}SignedInfo"))))
    return assemble(digest, signature)


_TEMPLATE: Final = (
    f'<ds:Signature xmlns:ds="{_DS}"><ds:SignedInfo>'
    f'<ds:CanonicalizationMethod Algorithm="{_C14N}"/>'
    f'<ds:SignatureMethod Algorithm="{_ECDSA_SHA384}"/><ds:Reference URI=""><ds:Transforms>'
    f'<ds:Transform Algorithm="{_ENVELOPED}"/><ds:Transform Algorithm="{_C14N}"/></ds:Transforms>'
    f'<ds:DigestMethod Algorithm="{_SHA384}"/><ds:DigestValue>{{digest}}</ds:DigestValue>'
    "</ds:Reference></ds:SignedInfo><ds:SignatureValue>{signature}</ds:SignatureValue>"
    "<ds:KeyInfo><ds:X509Data>{certificates}</ds:X509Data></ds:KeyInfo></ds:Signature>"
)
