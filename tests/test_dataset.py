import dataset


def test_classes_are_vocs():
    assert dataset.NUMBER_OF_CLASSES == 21 and dataset.IGNORE_LABEL == 255
    assert [dataset.CLASS_NAMES[i] for i in (0, 1, 8, 15, 20)] == ['background', 'aeroplane', 'cat', 'person',
                                                                    'tvmonitor']


def test_make_example_holds_the_schema():
    features = dataset.make_example(b'2007_000001', b'jpeg bytes', b'png bytes', 375, 500).features.feature
    assert {name: (feature.bytes_list.value or feature.int64_list.value)[0] for name, feature in features.items()} == {
        'image/encoded': b'jpeg bytes', 'image/label': b'png bytes', 'image/height': 375, 'image/width': 500,
        'image/filename': b'2007_000001', 'image/format': b'jpeg', 'image/label_format': b'png'}
