"""Timestamps (RFC 3161) of any time and over any digest, which no authority's program would give.

The encodings are written out here; `cryptography` makes certificates and signatures.
"""

import datetime
import hashlib

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

SHA256 = "2.16.840.1.101.3.4.2.1"
SHA512 = "2.16.840.1.101.3.4.2.3"
ECDSA_WITH_SHA256 = "1.2.840.10045.4.3.2"
SIGNED_DATA = "1.2.840.113549.1.7.2"
TIMESTAMP_INFO = "1.2.840.113549.1.9.16.1.4"
CONTENT_TYPE = "1.2.840.113549.1.9.3"
MESSAGE_DIGEST = "1.2.840.113549.1.9.4"
SIGNING_CERTIFICATE = "1.2.840.113549.1.9.16.2.47"
POLICY = "1.3.6.1.4.1.32473.1"  # of the arc that RFC 5612 sets aside for examples
BEGIN = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
END = datetime.datetime(2027, 1, 1, tzinfo=datetime.UTC)


def der(tag, *parts):
    content = b"".join(parts)
    if len(content) < 128:
        return bytes([tag, len(content)]) + content
    digits = len(content).to_bytes((len(content).bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(digits)]) + digits + content


def sequence(*parts):
    return der(0x30, *parts)


def set_of(*parts):
    return der(0x31, *sorted(parts))


def integer(value):
    return der(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def octets(content):
    return der(0x04, content)


def oid(text):
    first, second, *rest = map(int, text.split("."))
    encoded = bytearray()
    for arc in (40 * first + second, *rest):
        groups = [arc & 0x7F]
        while arc := arc >> 7:
            groups.append(0x80 | arc & 0x7F)
        encoded += bytes(reversed(groups))
    return der(0x06, bytes(encoded))


def attribute(kind, value):
    return sequence(oid(kind), set_of(value))


class Stamper:
    """Signs that a digest existed at a time."""

    def __init__(self, name="Test TSA", *, is_authority=True):
        self._serial = 0
        root_key, self._key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        root_name = self._name(f"{name} root")
        self.root = (
            self._certificate(root_name, root_name, root_key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(root_key, hashes.SHA256())
        )
        leaf = self._certificate(self._name(name), root_name, self._key.public_key())
        leaf = leaf.add_extension(
            x509.BasicConstraints(ca=False, path_length=None), critical=True
        ).add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key()),
            critical=False,
        )
        if is_authority:
            usage = x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.TIME_STAMPING])
            leaf = leaf.add_extension(usage, critical=True)
        self.certificate = leaf.sign(root_key, hashes.SHA256())

    @property
    def root_pem(self):
        return self.root.public_bytes(serialization.Encoding.PEM)

    def stamp(self, digest, time, *, algorithm=SHA256, status=0):
        """Return a TimeStampResp."""
        self._serial += 1
        info = sequence(
            integer(1),
            oid(POLICY),
            sequence(self._algorithm(algorithm), octets(digest)),
            integer(self._serial),
            der(0x18, time.strftime("%Y%m%d%H%M%SZ").encode()),
        )
        certificate = self.certificate.public_bytes(serialization.Encoding.DER)
        attributes = (
            attribute(CONTENT_TYPE, oid(TIMESTAMP_INFO)),
            attribute(MESSAGE_DIGEST, octets(hashlib.sha256(info).digest())),
            attribute(
                SIGNING_CERTIFICATE,
                sequence(sequence(sequence(octets(hashlib.sha256(certificate).digest())))),
            ),
        )
        signature = self._key.sign(set_of(*attributes), ec.ECDSA(hashes.SHA256()))
        signer = sequence(
            integer(1),
            sequence(
                self.certificate.issuer.public_bytes(), integer(self.certificate.serial_number)
            ),
            self._algorithm(SHA256),
            der(0xA0, *sorted(attributes)),
            sequence(oid(ECDSA_WITH_SHA256)),
            octets(signature),
        )
        signed = sequence(
            integer(3),
            set_of(self._algorithm(SHA256)),
            sequence(oid(TIMESTAMP_INFO), der(0xA0, octets(info))),
            der(0xA0, certificate),
            set_of(signer),
        )
        token = sequence(oid(SIGNED_DATA), der(0xA0, signed))
        return sequence(sequence(integer(status)), token)

    @staticmethod
    def _algorithm(text):
        return sequence(oid(text))

    @staticmethod
    def _name(text):
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

    @staticmethod
    def _certificate(subject, issuer, key):
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(BEGIN)
            .not_valid_after(END)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        )
