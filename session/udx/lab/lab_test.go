package lab

import (
	"testing"
	"time"
)

func TestTheSameSeedGivesTheSameResult(t *testing.T) {
	c := Conditions{Rate: 2e6, RTT: 20 * time.Millisecond, Loss: .05, Reorder: .25, Queue: Shallow}
	first, err := c.Goodput(7)
	if err != nil {
		t.Fatal(err)
	}
	again, err := c.Goodput(7)
	if err != nil || again != first {
		t.Errorf("%+v, then %+v, %v", first, again, err)
	}
	if other, _ := c.Goodput(8); other == first {
		t.Error("another seed gives the same")
	}
}

func TestWorldKeepsOrder(t *testing.T) {
	w := New(1)
	var got []int
	w.At(2, func() { got = append(got, 2) })
	w.At(1, func() { got = append(got, 1); w.Go(func() { got = append(got, 10) }) })
	timer := w.AfterFunc(3, func() { got = append(got, 3) })
	w.AfterFunc(4, func() { got = append(got, 4) })
	timer.Stop()
	w.Run(3)
	if len(got) != 3 || got[0] != 1 || got[1] != 10 || got[2] != 2 || w.Now() != 3 {
		t.Errorf("happened: %v at %v", got, w.Now())
	}
	if timer.Reset(1) {
		t.Error("a stopped timer was running")
	}
	w.Run(5)
	if len(got) != 5 {
		t.Errorf("happened: %v", got)
	}
}
