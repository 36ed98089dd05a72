#include "orientation.h"

#include <string_view>
#include <utility>

#include "jpeg_segments.h"

namespace ksm {
namespace {

constexpr uint8_t kApp1 = 0xe1;
constexpr std::string_view kExif("Exif\0\0", 6), kXmp("http://ns.adobe.com/xap/1.0/\0", 29);

bool Begins(std::string_view text, std::string_view with) { return text.substr(0, with.size()) == with; }

// What the notes of a file say: EXIF, which is a TIFF file without pixels, and XMP, which is XML. Empty where there is
// none.
struct Notes {
  std::string_view exif, xmp;
};

Notes NotesOfJpeg(std::string_view file) {
  Notes notes;
  for (const JpegSegment& segment : JpegSegments(file)) {
    if (segment.marker != kApp1) continue;
    if (Begins(segment.content, kExif) && notes.exif.empty()) notes.exif = segment.content.substr(kExif.size());
    if (Begins(segment.content, kXmp)) notes.xmp = segment.content.substr(kXmp.size());
  }
  return notes;
}

uint32_t Number(std::string_view bytes, size_t at, size_t count, bool big_endian) {
  uint32_t number = 0;
  for (size_t byte = 0; byte < count; ++byte) {
    const size_t from = at + (big_endian ? byte : count - 1 - byte);
    number = number << 8 | static_cast<uint8_t>(from < bytes.size() ? bytes[from] : 0);
  }
  return number;
}

Notes NotesOfPng(std::string_view file) {
  constexpr std::string_view kXmpText("XML:com.adobe.xmp\0\0", 19);  // The second zero: it is not compressed.
  Notes notes;
  for (size_t at = 8; at + 12 <= file.size();) {
    const size_t length = Number(file, at, 4, true);
    if (length > file.size() - at - 12) break;
    const std::string_view kind = file.substr(at + 4, 4), content = file.substr(at + 8, length);
    if (kind == "eXIf") notes.exif = content;
    if (kind == "iTXt" && Begins(content, kXmpText)) notes.xmp = content.substr(kXmpText.size());
    at += 12 + length;
  }
  if (Begins(notes.exif, kExif)) notes.exif.remove_prefix(kExif.size());
  return notes;
}

// The format: Exif 2.32, which has it from TIFF 6.0. 0 where there is no orientation.
uint32_t ExifOrientation(std::string_view exif) {
  constexpr uint32_t kOrientation = 0x0112, kShort = 3, kLong = 4;
  constexpr size_t kEntryBytes = 12;
  const bool big_endian = Begins(exif, "MM");
  if (!big_endian && !Begins(exif, "II")) return 0;
  const size_t begin = Number(exif, 4, 4, big_endian), count = Number(exif, begin, 2, big_endian);
  for (size_t entry = begin + 2; entry < begin + 2 + kEntryBytes * count && entry < exif.size(); entry += kEntryBytes) {
    const uint32_t type = Number(exif, entry + 2, 2, big_endian);
    if (Number(exif, entry, 2, big_endian) != kOrientation || Number(exif, entry + 4, 4, big_endian) != 1) continue;
    if (type == kShort || type == kLong) return Number(exif, entry + 8, type == kShort ? 2 : 4, big_endian);
  }
  return 0;
}

// As an attribute or as an element.
uint32_t XmpOrientation(std::string_view xmp) {
  constexpr std::string_view kName = "tiff:Orientation";
  for (size_t at = xmp.find(kName); at != xmp.npos; at = xmp.find(kName, at)) {
    at += kName.size();
    const std::string_view rest = xmp.substr(at);
    for (const std::string_view before : {"=\"", ">"}) {
      const char digit = rest.size() > before.size() && Begins(rest, before) ? rest[before.size()] : ' ';
      if (digit >= '0' && digit <= '9') return digit - '0';
    }
  }
  return 0;
}

}  // namespace

int OrientationOf(const std::string& file) {
  const Notes notes = Begins(file, "\x89PNG") ? NotesOfPng(file) : NotesOfJpeg(file);
  uint32_t orientation = ExifOrientation(notes.exif);
  if (orientation == 0) orientation = XmpOrientation(notes.xmp);
  return orientation >= 1 && orientation <= 8 ? static_cast<int>(orientation) : 1;
}

Image Upright(const Image& image, int orientation) {
  const bool transposed = orientation >= 5;
  const bool from_right = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
  const bool from_bottom = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
  Image upright(transposed ? image.height : image.width, transposed ? image.width : image.height);
  for (int y = 0; y < upright.height; ++y) {
    for (int x = 0; x < upright.width; ++x) {
      int from_x = x, from_y = y;
      if (transposed) std::swap(from_x, from_y);
      if (from_right) from_x = image.width - 1 - from_x;
      if (from_bottom) from_y = image.height - 1 - from_y;
      const uint8_t* from = image.At(from_x, from_y);
      for (int channel = 0; channel < 3; ++channel) upright.At(x, y)[channel] = from[channel];
    }
  }
  return upright;
}

}  // namespace ksm
