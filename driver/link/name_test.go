// SPDX-License-Identifier: Apache-2.0

package link

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestNames(t *testing.T) {
	for _, name := range []string{"eth0", "eth0.10", "br-0123456789ab", "…", "a..b"} {
		require.NoError(t, CheckName(name), name)
	}
	for _, name := range []string{"", ".", "..", "a/b", "../a", "a b", "a\nb", "a\rb", "a\x00", "eth0:1", "0123456789abcdef"} {
		require.Error(t, CheckName(name), "%q", name)
	}
}
