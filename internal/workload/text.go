package workload

import "penstock.dev/penstock/internal/stat"

// BytesPerToken is the length of one generated word with the space before it.
// A tokenizer that cuts text into pieces of at most four bytes, spaces leading,
// counts exactly one token per word; common byte-pair tokenizers do so nearly
// always. Others can be checked against the prompt tokens a server reports.
const BytesPerToken = 4

// wordsPerDraw is how many words one 64-bit draw gives, a byte for each.
const wordsPerDraw = 8

// Text appends the text of the segments to dst and returns it: for each token
// one space and one word, BytesPerToken bytes in all. The text is ASCII letters
// and spaces only, so that it can stand in a JSON string as it is.
func Text(dst []byte, segments []Segment) []byte {
	for _, s := range segments {
		dst = appendWords(dst, s.ID, s.Tokens)
	}
	return dst
}

// TextWithAnswers is Text with the k-th assistant run replaced by answers[k]
// where that exists and is not empty. The answers are appended as they are.
func TextWithAnswers(dst []byte, segments []Segment, answers [][]byte) []byte {
	k := 0
	for _, s := range segments {
		if s.Role == RoleAssistant {
			k++
			if k <= len(answers) && len(answers[k-1]) > 0 {
				dst = append(dst, answers[k-1]...)
				continue
			}
		}
		dst = appendWords(dst, s.ID, s.Tokens)
	}
	return dst
}

// appendWords writes n words of the stream that id names. Word i depends on id
// and i alone, which makes shorter runs prefixes of longer ones.
func appendWords(dst []byte, id uint64, n int) []byte {
	for i := 0; i < n; i += wordsPerDraw {
		draw := stat.Mix64(id + uint64(i/wordsPerDraw)*0xd1b54a32d192ed03)
		for range min(wordsPerDraw, n-i) {
			w := int(draw&0xff) * BytesPerToken
			dst = append(dst, words[w:w+BytesPerToken]...)
			draw >>= 8
		}
	}
	return dst
}
