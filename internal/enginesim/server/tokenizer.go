package server

import "encoding/binary"

// A token is up to four bytes of text, its id those bytes in little-endian
// order. A word's pieces have at most four bytes; the space before a word
// belongs to its first piece; anything that is not a letter or digit stands
// alone. Pieces never hold a zero byte but the token of that byte itself (id
// 0), so ids with one in the middle are free for special tokens.
const maxPiece = 4

// The special tokens of the chat template.
const (
	tokenStart uint32 = 0x01000000 + iota // begins a message
	tokenEnd                              // ends a message
	tokenTools                            // begins the tool definitions
	tokenPart                             // stands for a part that is not text
	tokenCall                             // begins the call of a tool
	specialsEnd
)

var specials = [...]string{"<|im_start|>", "<|im_end|>", "<|tools|>", "<|part|>", "<|call|>"}

// inWord says which bytes make words: letters, digits, and all of UTF-8 beyond
// ASCII.
func inWord(c byte) bool {
	return c >= 0x80 || c|0x20 >= 'a' && c|0x20 <= 'z' || c >= '0' && c <= '9'
}

// appendTokens appends the tokens of text to dst.
func appendTokens(dst []uint32, text string) []uint32 {
	for i := 0; i < len(text); {
		j := i + 1
		if inWord(text[i]) || text[i] == ' ' && j < len(text) && inWord(text[j]) {
			for j < len(text) && j-i < maxPiece && inWord(text[j]) {
				j++
			}
		}
		var id uint32
		for k := i; k < j; k++ {
			id |= uint32(text[k]) << (8 * (k - i))
		}
		dst = append(dst, id)
		i = j
	}
	return dst
}

// appendText appends the text of one token to dst.
func appendText(dst []byte, token uint32) []byte {
	if token >= tokenStart && token < specialsEnd {
		return append(dst, specials[token-tokenStart]...)
	}
	n := 1
	for n < maxPiece && token>>(8*n) != 0 {
		n++
	}
	var b [4]byte
	binary.LittleEndian.PutUint32(b[:], token)
	return append(dst, b[:n]...)
}

// The pieces of generated text: words of three letters with their space,
// four-letter endings, and stops between sentences.
const (
	consonants = "bdfghklmnprstvwz" // 16
	vowels     = "aeio"             // 4
)

// voice turns draws into tokens that read a little like text and that a
// tokenizer splits the same way again: words are full pieces, so whatever
// follows starts a new one.
type voice uint8

const (
	voiceStart  voice = iota // begin an answer of its own: no leading space
	voiceMiddle              // go on in running text
	voiceWord                // after the beginning of a word
)

// next returns the token for the given draw.
func (v *voice) next(draw uint64) uint32 {
	c := func(shift uint) uint32 { return uint32(consonants[draw>>shift&15]) }
	w := func(shift uint) uint32 { return uint32(vowels[draw>>shift&3]) }
	switch kind := draw >> 40 & 15; {
	case *v == voiceStart:
		*v = voiceWord
		return c(0) | w(4)<<8 | c(6)<<16 | w(10)<<24
	case *v == voiceWord && kind == 0:
		*v = voiceMiddle
		return uint32(",.;?"[draw&3])
	case *v == voiceWord && kind < 4:
		*v = voiceMiddle
		return w(0) | c(2)<<8 | w(6)<<16 | c(8)<<24
	}
	*v = voiceWord
	return uint32(' ') | c(0)<<8 | w(4)<<16 | c(6)<<24
}
