// SPDX-License-Identifier: Apache-2.0

package dns

import "sync/atomic"

// What becomes of a query.
const (
	answered  = iota // as a service's name or address
	forwarded        // and answered by the engine
	failed           // the engine did not answer
	malformed
	dropped // by the limits of a sandbox
	outcomes
)

// counts are the queries of all sandboxes, by what became of them.
type counts [outcomes]atomic.Uint64

// Queries counts the queries since the start, by what became of them: service, forwarded, failed, malformed or dropped. A TCP
// connection that is refused counts as one query.
func (s *Server) Queries() map[string]uint64 {
	out := make(map[string]uint64, outcomes)
	for i, name := range [outcomes]string{"service", "forwarded", "failed", "malformed", "dropped"} {
		out[name] = s.counts[i].Load()
	}
	return out
}
