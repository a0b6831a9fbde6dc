// SPDX-License-Identifier: Apache-2.0

package scenarios

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// counts runs a command, which must succeed, and asserts how many frames more were dropped for a reason:
// `counts REASON NUMBER COMMAND…`, where NUMBER+ is so many at least.
func (s *scenario) counts(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 3 {
		ts.Fatalf("usage: counts REASON NUMBER COMMAND…")
	}
	number, orMore := strings.CutSuffix(args[1], "+")
	want, err := strconv.Atoi(number)
	ts.Check(err)
	before, err := dropsFor(args[0])
	ts.Check(err)
	r := s.word(ts, args[2:])
	r.show(ts)
	if r.err != nil {
		ts.Fatalf("%v", r.err)
	}
	for end := time.Now().Add(patience(2 * time.Second)); ; time.Sleep(patience(20 * time.Millisecond)) {
		now, err := dropsFor(args[0])
		ts.Check(err)
		if now-before == want || orMore && now-before > want {
			return
		}
		if now-before > want || time.Now().After(end) {
			ts.Fatalf("%d frames were dropped as %s, not %d", now-before, args[0], want)
		}
	}
}

// dropsFor asks mustang how many frames were dropped for a reason.
func dropsFor(reason string) (int, error) {
	r := run("/", "mustang", "status", "-o", "json")
	var status struct {
		Subsystems []struct{ Name, Detail string }
	}
	if err := json.Unmarshal([]byte(r.stdout), &status); err != nil {
		return 0, fmt.Errorf("mustang status: %s: %w", r.stderr, err)
	}
	for _, part := range status.Subsystems {
		if found := regexp.MustCompile(`(?:^|, )` + reason + ` (\d+)`).FindStringSubmatch(part.Detail); part.Name == "drops" && found != nil {
			return strconv.Atoi(found[1])
		}
	}
	return 0, nil
}
