{{- define "msmlp.fullname" -}}
{{- $full := ternary .Release.Name (printf "%s-msmlp" .Release.Name) (contains "msmlp" .Release.Name) }}
{{- default $full .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "msmlp.selectorLabels" -}}
app.kubernetes.io/name: msmlp
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "msmlp.labels" -}}
{{ include "msmlp.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "msmlp.serviceAccountName" -}}
{{- default (ternary (include "msmlp.fullname" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name }}
{{- end }}

{{/* The service's settings: those in .Values.settings, and those derived from other values. */}}
{{- define "msmlp.settings" -}}
{{- $settings := dict }}
{{- if .Values.gpu.enabled }}
{{- /* A pod that requests a GPU and finds none must fail, not serve from a CPU. */}}
{{- $_ := set $settings "device" "cuda" }}
{{- end }}
{{- if .Values.grpc.enabled }}
{{- $_ := set $settings "grpc_port" 8001 }}
{{- end }}
{{- if .Values.metrics.enabled }}
{{- $_ := set $settings "metrics_port" 8002 }}
{{- end }}
{{- if .Values.tls.secretName }}
{{- $_ := set $settings "ssl_certfile" "/tls/tls.crt" }}
{{- $_ := set $settings "ssl_keyfile" "/tls/tls.key" }}
{{- end }}
{{- with default (ternary "/weights" "" (ne .Values.weights.claim "")) .Values.weights.path }}
{{- $_ := set $settings "weights" . }}
{{- end }}
{{- range $name, $value := merge (dict) .Values.settings $settings }}
- name: MSMLP_{{ upper $name }}
  {{- /* As JSON, because a template writes a million as 1e+06. */}}
  value: {{ ternary $value (toJson $value) (kindIs "string" $value) | quote }}
{{- end }}
{{- end }}

{{/* Where probes and Prometheus come: their own port without TLS, or the service's. */}}
{{- define "msmlp.probePort" -}}
{{- ternary "metrics" "http" .Values.metrics.enabled }}
{{- end }}
{{- define "msmlp.probeScheme" -}}
{{- ternary "HTTPS" "HTTP" (and (ne .Values.tls.secretName "") (not .Values.metrics.enabled)) }}
{{- end }}
