// SPDX-License-Identifier: Apache-2.0

package link

import (
	"fmt"
	"math"

	"github.com/vishvananda/netlink"
)

// Rate is how fast a device may send.
type Rate struct {
	Bits  uint64 `json:"bits"`  // per second
	Burst uint64 `json:"burst"` // bits that may be sent at once after a pause
}

// maxBurst is how many seconds of its rate a burst may be, as the kernel is told its length in 64 ns, in 32 bits.
const maxBurst = 274

// limitDelay is how long a packet may wait in the queue before it is dropped, in seconds: upstream's plugin bandwidth has the same.
const limitDelay = 0.025

// Limit makes a device of the namespace at path, or of our own for "", send no faster than the rate. It goes with the device.
func (h Host) Limit(path, name string, r Rate) error {
	if r.Bits < 8 || r.Burst < 8 {
		return fmt.Errorf("limit %s to %d bits/s with a burst of %d bits: neither may be less than 8", name, r.Bits, r.Burst)
	}
	set := func() error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return fmt.Errorf("find the device %s: %w", name, err)
		}
		rate := r.Bits / 8
		burst := uint32(min(r.Burst/8, rate*maxBurst, math.MaxUint32))
		return netlink.QdiscReplace(&netlink.Tbf{
			QdiscAttrs: netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
			Rate:       rate, Buffer: netlink.Xmittime(rate, burst),
			Limit: uint32(min(float64(rate)*limitDelay+float64(burst), math.MaxUint32)),
		})
	}
	do := set
	if path != "" {
		do = func() error { return h.Do(path, set) }
	}
	if err := do(); err != nil {
		return fmt.Errorf("limit what %s sends: %w", name, explain(err))
	}
	return nil
}
