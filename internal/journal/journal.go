// Package journal is the record of what a pool's brain was told and what it
// answered: framed, checksummed records of varints. It knows frames and
// primitives; what a record means is its owner's business. It holds hashes,
// lengths and times, never text of a request.
//
// A journal is the magic, then records: length (uvarint), body, CRC-32C of the
// body (4 bytes, little endian). A torn last record, as a crash leaves it, ends
// the journal; damage anywhere else is an error.
package journal

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

const magic = "PENSTOCK-JOURNAL-12\n"

// MaxRecord bounds one record; a longer length on read means damage.
const MaxRecord = 16 << 20

// ErrDamaged says that a record's checksum or length is wrong.
var ErrDamaged = errors.New("journal is damaged")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Writer appends records to w. It buffers; Flush pushes the buffer out.
type Writer struct {
	w   *bufio.Writer
	buf []byte
	err error
}

// NewWriter starts a journal on w.
func NewWriter(w io.Writer) *Writer {
	j := &Writer{w: bufio.NewWriterSize(w, 1<<16)}
	_, j.err = j.w.WriteString(magic)
	return j
}

// Append writes one record. After the first error nothing more is written and
// every call returns that error.
func (j *Writer) Append(body []byte) error {
	if j.err != nil {
		return j.err
	}
	if len(body) > MaxRecord {
		return fmt.Errorf("journal: record of %d bytes exceeds %d", len(body), MaxRecord)
	}
	j.buf = binary.AppendUvarint(j.buf[:0], uint64(len(body)))
	j.buf = append(j.buf, body...)
	j.buf = binary.LittleEndian.AppendUint32(j.buf, crc32.Checksum(body, castagnoli))
	_, j.err = j.w.Write(j.buf)
	return j.err
}

// Flush pushes buffered records to the underlying writer.
func (j *Writer) Flush() error {
	if j.err == nil {
		j.err = j.w.Flush()
	}
	return j.err
}

// Reader reads a journal from its start.
type Reader struct {
	r    *bufio.Reader
	body []byte
	n    int
}

// NewReader checks the magic and returns a reader.
func NewReader(r io.Reader) (*Reader, error) {
	br := bufio.NewReaderSize(r, 1<<16)
	head := make([]byte, len(magic))
	if _, err := io.ReadFull(br, head); err != nil || string(head) != magic {
		return nil, fmt.Errorf("%w: it does not start with %q", ErrDamaged, magic[:len(magic)-1])
	}
	return &Reader{r: br}, nil
}

// Next returns the next record's body, valid until the following call. It
// returns io.EOF at the end, also when the last record is torn.
func (j *Reader) Next() ([]byte, error) {
	n, err := binary.ReadUvarint(j.r)
	if err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, io.EOF
		}
		return nil, fmt.Errorf("%w: record %d has no readable length", ErrDamaged, j.n)
	}
	if n > MaxRecord {
		return nil, fmt.Errorf("%w: record %d claims %d bytes", ErrDamaged, j.n, n)
	}
	need := int(n) + 4
	if cap(j.body) < need {
		// A damaged length must not make us allocate what is not there.
		j.body = make([]byte, min(need, 64<<10))
	}
	if err := j.fill(need); err != nil {
		return nil, err
	}
	body, sum := j.body[:n], binary.LittleEndian.Uint32(j.body[n:need])
	if crc32.Checksum(body, castagnoli) != sum {
		return nil, fmt.Errorf("%w: checksum of record %d", ErrDamaged, j.n)
	}
	j.n++
	return body, nil
}

// fill reads need bytes into body, growing it only as bytes arrive.
func (j *Reader) fill(need int) error {
	for at := 0; at < need; {
		if at == len(j.body) && at < need {
			j.body = append(j.body, make([]byte, min(need-at, max(at, 4096)))...)
		}
		j.body = j.body[:cap(j.body)]
		k, err := io.ReadFull(j.r, j.body[at:min(need, len(j.body))])
		at += k
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return io.EOF
		}
		if err != nil {
			return fmt.Errorf("journal: read record %d: %w", j.n, err)
		}
	}
	return nil
}
