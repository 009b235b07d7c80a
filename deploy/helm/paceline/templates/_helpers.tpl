{{/* Labels of everything in a release; `component` tells the parts apart. */}}
{{- define "paceline.labels" -}}
app.kubernetes.io/name: paceline
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{/* What selects the pods of a role: (dict "root" $ "role" "verifier"). */}}
{{- define "paceline.selector" -}}
app.kubernetes.io/name: paceline
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .role }}
{{- end }}

{{/* An image: (dict "root" $ "role" "verifier"). */}}
{{- define "paceline.image" -}}
{{- $image := index .root.Values.images .role -}}
{{ $image.repository }}:{{ $image.tag | default .root.Chart.AppVersion }}
{{- end }}

{{/* A role's options as arguments. Booleans take no value; numbers of a file are floats, which %v writes as 1e+06. */}}
{{- define "paceline.args" -}}
{{- range $name, $value := . }}
{{- if kindIs "bool" $value }}
- {{ printf "--%s%s" ($value | ternary "" "no-") $name | quote }}
{{- else if and (kindIs "float64" $value) (eq $value (floor $value)) }}
- {{ printf "--%s=%.0f" $name $value | quote }}
{{- else }}
- {{ printf "--%s=%v" $name $value | quote }}
{{- end }}
{{- end }}
{{- end }}

{{/* Every coordinator's address, for workers: each registers with all of them. */}}
{{- define "paceline.coordinators" -}}
{{- $name := printf "%s-coordinator" .Release.Name -}}
{{- $addresses := list -}}
{{- range $i := until (int .Values.coordinator.replicas) -}}
{{- $addresses = append $addresses (printf "%s-%d.%s-peers.%s.svc:50051" $name $i $name $.Release.Namespace) -}}
{{- end -}}
{{ join "," $addresses }}
{{- end }}

{{/* Environment of a role: (dict "root" $ "role" "verifier"). */}}
{{- define "paceline.env" -}}
- {name: PACELINE_HOST, value: "0.0.0.0"}
{{- if .root.Values.tls.enabled }}
- {name: PACELINE_TLS_CERT, value: /etc/paceline/tls/tls.crt}
- {name: PACELINE_TLS_KEY, value: /etc/paceline/tls/tls.key}
- {name: PACELINE_TLS_CA, value: /etc/paceline/tls/ca.crt}
{{- else }}
- {name: PACELINE_INSECURE, value: "true"}
{{- end }}
{{- end }}

{{/* Volumes and their mounts that every role has: (dict "root" $ "role" "verifier"). */}}
{{- define "paceline.mounts" -}}
- {name: scratch, mountPath: /tmp}
- {name: scratch, mountPath: /home/paceline/.cache}
{{- if .root.Values.tls.enabled }}
- {name: tls, mountPath: /etc/paceline/tls, readOnly: true}
{{- end }}
{{- if .root.Values.models.volume }}
- {name: models, mountPath: /models, readOnly: true}
{{- end }}
{{- end }}

{{- define "paceline.volumes" -}}
- {name: scratch, emptyDir: {}}
{{- if .root.Values.tls.enabled }}
- name: tls
  secret: {secretName: {{ .root.Release.Name }}-{{ .role }}-tls, defaultMode: 0440}
{{- end }}
{{- with .root.Values.models.volume }}
- name: models
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* No pod needs more than to read its files and to talk. */}}
{{- define "paceline.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "paceline.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}
