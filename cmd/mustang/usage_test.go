// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestUnknownCommandSuggestsOnlyWhatThereIs(t *testing.T) {
	for _, tt := range []struct{ args, want string }{
		{"svc lss", `mustang: svc: unknown command "lss": Did you mean "ls"? Commands: add, rm,`},
		{"svc foo", `mustang: svc: unknown command "foo": Commands: add, rm,`},
		{"network create --driver bridge x", "mustang: network create: unknown flag --driver\n"},
		{"qq", `mustang: unknown command "qq": Commands: daemon, svc,`},
	} {
		var stdout, stderr bytes.Buffer
		oneAtATime.Lock()
		code := run(t.Context(), env{
			args:   append([]string{"mustang"}, strings.Fields(tt.args)...),
			stdout: &stdout, stderr: &stderr, getenv: func(string) string { return "" },
		})
		oneAtATime.Unlock()
		require.Equal(t, 2, code)
		require.Empty(t, stdout.String())
		require.Contains(t, stderr.String(), tt.want)
	}
}
