package udx

import "slices"

// rangeset is a set of sequence numbers as ascending runs that neither overlap nor touch. All of them must lie within
// 2³¹ of each other.
type rangeset []seqRange

// search returns the index of the first run that ends at or after q.
func (s rangeset) search(q seq) int {
	if n := len(s); n > 0 && s[n-1].end.before(q) { // the common cases: behind the last run, or in it
		return n
	} else if n > 0 && !q.before(s[n-1].start) {
		if n > 1 && s[n-2].end == q {
			return n - 2
		}
		return n - 1
	}
	i, _ := slices.BinarySearchFunc(s, q, func(r seqRange, q seq) int { return int(int32(r.end - q)) })
	return i
}

// contains reports whether q is in the set.
func (s rangeset) contains(q seq) bool {
	i := s.search(q + 1)
	return i < len(s) && !q.before(s[i].start)
}

// add adds the numbers from start up to and without end.
func (s *rangeset) add(start, end seq) {
	if !start.before(end) {
		return
	}
	i := s.search(start)
	j := i
	for j < len(*s) && !end.before((*s)[j].start) {
		j++
	}
	if i == j {
		*s = slices.Insert(*s, i, seqRange{start, end})
		return
	}
	if (*s)[i].start.before(start) {
		start = (*s)[i].start
	}
	end = end.max((*s)[j-1].end)
	*s = slices.Replace(*s, i, j, seqRange{start, end})
}

// removeBefore removes all numbers before q.
func (s *rangeset) removeBefore(q seq) {
	i := 0
	for i < len(*s) && !q.before((*s)[i].end) {
		i++
	}
	*s = slices.Delete(*s, 0, i)
	if len(*s) > 0 && (*s)[0].start.before(q) {
		(*s)[0].start = q
	}
}

// appendMissing appends to gaps the runs from start up to and without end that are not in the set.
func (s rangeset) appendMissing(gaps []seqRange, start, end seq) []seqRange {
	for i := s.search(start); start.before(end); i++ {
		if i == len(s) || !s[i].start.before(end) {
			return append(gaps, seqRange{start, end})
		}
		if start.before(s[i].start) {
			gaps = append(gaps, seqRange{start, s[i].start})
		}
		start = start.max(s[i].end)
	}
	return gaps
}
