package route

import "testing"

func TestPickEncoder(t *testing.T) {
	for _, c := range []struct {
		name string
		list []Encoder
		want int
	}{
		{"none", nil, NoSlot},
		{"the idler", []Encoder{{Slot: 1, Images: 2}, {Slot: 2, Images: 1}}, 2},
		{"who has it", []Encoder{{Slot: 1}, {Slot: 2, Has: true}, {Slot: 3}}, 2},
		{"an idle one rather than a queue", []Encoder{{Slot: 1, Images: 1, Has: true}, {Slot: 2}}, 2},
	} {
		for image := range uint64(16) {
			if got := PickEncoder(c.list, image); got != c.want {
				t.Errorf("%s: %d, want %d", c.name, got, c.want)
			}
		}
	}
	equal := []Encoder{{Slot: 0}, {Slot: 1}, {Slot: 2}}
	used := map[int]int{}
	for image := range uint64(300) {
		used[PickEncoder(equal, image)]++
	}
	for slot := range 3 {
		if used[slot] < 60 {
			t.Errorf("slot %d encodes %d of 300 images", slot, used[slot])
		}
	}
}
